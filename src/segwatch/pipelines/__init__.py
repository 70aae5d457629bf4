"""The two pipelines on KFP: the same steps as the in-process runner's, as components. The only users of kfp."""
