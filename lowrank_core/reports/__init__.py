"""What is told of plans as one page to keep: gathered, drawn, and written as HTML or Markdown."""
