"""The job: which volumes become which shards, and the stages that make them."""
