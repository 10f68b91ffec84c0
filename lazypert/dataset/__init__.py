"""The xarray view of a store."""
