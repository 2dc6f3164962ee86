import pytest

from tests.backend.web.stand_in import StandIn


@pytest.fixture
def service() -> StandIn:
    return StandIn()
