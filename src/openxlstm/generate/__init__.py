"""From a model to text: `sampling` picks tokens, `engine` keeps the state, `text` joins strings."""
