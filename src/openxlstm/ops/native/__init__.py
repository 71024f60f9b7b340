"""The Python side of the native CPU backend: registration and gradients of the operators in
`ops/cpu/`, and the plan of a native step."""
