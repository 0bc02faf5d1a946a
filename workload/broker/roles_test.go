package broker_test

const roleVariable = "WARD_TEST_ROLE"

func play(string) int { return 1 }
