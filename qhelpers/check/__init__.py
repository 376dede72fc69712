"""The checker of a stranger's model: inputs, choice of a workflow, simulation, diagnosis, repair, files, report."""
