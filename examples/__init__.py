"""Scripts for the questions that people come with; ``examples/README.md`` lists them."""
