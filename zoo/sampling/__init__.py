"""Drawing tokens: schedules, masks, orders and labels."""
