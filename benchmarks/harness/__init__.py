"""What every question uses: options, repeats, results and the console."""
