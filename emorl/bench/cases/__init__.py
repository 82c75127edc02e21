"""The inputs on which operators are tested and timed, a module each: one table for both."""
