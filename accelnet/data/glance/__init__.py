"""What a data set shows of itself: a few lines, and a card in a notebook. It knows no `Data`, which calls it."""
