"""Search: in the question's own documents, in your files, in the official results, on the web."""
