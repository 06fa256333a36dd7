"""Sources of images: one module per protocol, and one row in `hpcimg.schemes`.

A source module has one function:

    fetch(reference, sink, *, validator, settings) -> bool

It runs in a process of its own that can only read what it fetches. It makes one `Offer`, writes the
file to the sink, and returns False; or it finds with one request that the content for `validator`
is still current, and returns True. It raises `HpcimgError`. It imports only parts of hpcimg below
the sources: fetch, http, reference, errors.
"""
