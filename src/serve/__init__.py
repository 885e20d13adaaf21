from src.serve.command import serve as serve
