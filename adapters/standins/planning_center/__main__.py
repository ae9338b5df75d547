from adapters.standins.planning_center.serving import main

main()
