terraform {
  # Validations that look at several variables came with 1.9.
  required_version = ">= 1.9.0"
}
