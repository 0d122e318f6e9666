"""The explorer: the page that shows what a served network sees. Data only; the server sends it."""
