"""Reading pages and PDF files of the public internet."""
