"""The broker dies, freezes or goes down in good order."""


def test_a_broker_killed_while_events_are_published(scene):
    scene.consume()
    publisher = scene.publish(6000, "--rate", "300")
    for crash in (1, 2):
        publisher.wait_for('"confirmed"', count=len(publisher.out) + 200)
        scene.node.kill()
        for script in (publisher, *scene.consumers):
            script.wait_for("Sin conexión con el broker", count=crash)
        scene.node.start()
        for script in (publisher, *scene.consumers):
            script.wait_for("Conectado de nuevo", count=crash)
    scene.balance()
