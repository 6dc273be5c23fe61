"""The demo: every task of the package in the browser. ``engine`` runs settings and knows no Gradio, ``tabs`` and
``look`` are what is seen, ``serve`` starts it."""
