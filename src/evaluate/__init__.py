from src.evaluate.command import evaluate as evaluate
