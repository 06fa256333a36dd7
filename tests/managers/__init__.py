"""The names of images in hpcimg.managers, beside the workflow managers themselves."""
