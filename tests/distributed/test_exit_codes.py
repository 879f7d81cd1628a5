from jaxcore.distributed import ExitCode


def test_codes_that_launchers_rely_on():
    codes = {code.name: int(code) for code in ExitCode}
    assert codes == {
        "FINISHED": 0,
        "USAGE": 2,
        "PREEMPTED": 75,
        "WATCHDOG": 76,
        "NUMBERS_BAD": 77,
        "BAD_CONFIG": 78,
    }
