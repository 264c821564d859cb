"""The DAG and what runs it: plan, materialize, identity. None of it shapes a result."""
