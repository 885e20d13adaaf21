from src.report.command import report as report
