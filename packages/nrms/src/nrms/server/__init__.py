"""The store, the article recommender and the HTTP API."""
