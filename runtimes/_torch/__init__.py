"""Inside the torch runtime: values, the operator table, programs compiled from graphs, and the module around one."""
