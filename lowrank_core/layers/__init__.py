"""One linear map as data, and the modules that replace it."""
