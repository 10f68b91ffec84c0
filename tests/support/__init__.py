"""What several test files need: screens, stores, files, readers to compare with."""
