"""What both of gunicorn's workers have in common here, and each of them."""
