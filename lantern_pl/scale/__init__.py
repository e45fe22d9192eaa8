"""The engine `ray`: labelling, caching and prediction by the workers of a Ray cluster."""
