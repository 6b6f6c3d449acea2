"""Small networks of other kinds than the built-in ones, trained as they are opened on data that scikit-learn ships."""
