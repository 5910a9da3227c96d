"""Public data sets, and how records are dealt out to silos. No torch, no model, nothing is downloaded.

``schemes``    the laws: iid, dirichlet, pathological, quantity, by-column
``partition``  a split of records over silos, drawn from a seed, kept in a file and checked against the records
``table``      the eleven data sets: folders, split files, templates, sizes, first settings
``readers``    train, val and test from their published folders
``few_shot``   k images a class, and a few to choose settings by
``sources``    records to be dealt out: a data set, a folder, or a CSV file with the site of each record
``task``       classes, templates and first settings for ``init``, of a data set or a partition
``folders``    a partition as folders that ``join`` takes
"""
