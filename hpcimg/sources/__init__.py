"""Where images come from: one module for each protocol, and one row in `hpcimg.schemes`.

A source module has one function:

    fetch(reference, sink, *, validator, settings) -> bool

It runs in a process of its own that has no rights but to read what it fetches.
It makes one `Offer`, writes the file to the sink, and returns False; or it finds
with one request that what `validator` was about still holds, and returns True.
It raises `HpcimgError`. It imports no other part of hpcimg than what is below
the sources: transfer, retry, sink, reference, errors.
"""
