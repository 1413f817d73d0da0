"""The report: one HTML file that holds records, their pictures, and a block being denoised."""
