"""What commands share with the machine: command line, processes, devices, files, progress."""
