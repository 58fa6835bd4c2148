"""The web demo: write, fill in, edit and compare in the browser, with every step shown as it is made."""
