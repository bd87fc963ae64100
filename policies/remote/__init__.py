"""Policies over the network, by openpi's websocket protocol: a client, a server, and the messages between them."""
