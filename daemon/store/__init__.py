"""The store: models by name.  Small manifests point at blobs that are named by the sha256 of what they hold.

    names      what a name may be, in one place
    blobs      content-addressed files: written aside, checked, synced, renamed
    manifest   one JSON file a name: which blobs, which defaults
    models     the store itself: list, find, put, copy, remove, collect

A crash at any point leaves every name whole: blobs are complete before a manifest names them, and a manifest is gone before
its blobs are.  No asyncio here: services call it in threads.
"""
