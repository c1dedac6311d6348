"""Stylizing a whole data set: tree and names kept, resumable, over many processes and machines."""
