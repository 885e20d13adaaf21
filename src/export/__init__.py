from src.export.command import export as export
