"""A client of RabbitMQ: rabbitmq.py URL declare | publish TEXT | take

A message counts as published when the broker has confirmed it, which it does once it is on the disk.
"""

import sys

import pika

url, verb, *rest = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
if verb == "declare":
    channel.queue_declare("orders", durable=True)
elif verb == "publish":
    channel.confirm_delivery()
    kept = pika.BasicProperties(delivery_mode=2)
    channel.basic_publish("", "orders", rest[0].encode(), kept, mandatory=True)
elif verb == "take":
    while True:
        method, _, body = channel.basic_get("orders", auto_ack=True)
        if method is None:
            break
        print(body.decode())
connection.close()
