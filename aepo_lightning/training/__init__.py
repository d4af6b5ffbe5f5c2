"""The Lightning side: the module that takes optimiser steps, the data that it takes them on, and the cold start."""
