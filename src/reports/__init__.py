"""What a report is made of: run folders that are read, what is said about them, figures, pictures and the page."""
