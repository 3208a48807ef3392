"""The plugins that ship with autotl. They use only autotl's public names, and the host loads them by name."""
