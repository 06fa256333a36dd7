"""Install, upgrade and remove the packages in a clean Debian: `make test-packages`."""
