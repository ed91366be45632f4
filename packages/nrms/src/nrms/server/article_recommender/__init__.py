"""The recommender as a service: store, jobs, HTTP API, page."""
