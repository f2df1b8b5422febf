//! What containers write, however much and whatever it is: what is kept of it, what it costs, and how it is shown.
