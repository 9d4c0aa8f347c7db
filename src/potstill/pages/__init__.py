"""The verb `report`: one HTML page of what any folders of potstill hold."""
