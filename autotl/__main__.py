from autotl.cli.main import main

main()
