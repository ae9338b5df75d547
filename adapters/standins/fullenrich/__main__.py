from adapters.standins.fullenrich.serving import main

main()
