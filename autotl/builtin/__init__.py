"""What ships: ordinary plugins that use only autotl's public names. The host loads them by name."""
